"""Settings for all tests: property tests draw the same examples every time."""

import hypothesis

hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile("suite")
