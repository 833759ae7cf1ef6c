"""No test reaches a model hub; tests/test_hub.py has a server of its own."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
