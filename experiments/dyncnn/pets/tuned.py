def measure(contest, folder):
    raise NotImplementedError
