"""What holds for every test."""

from hypothesis import settings

# No test is timed: how long an example takes says more of the machine than of the code.
settings.register_profile("flyweight", deadline=None)
settings.load_profile("flyweight")
