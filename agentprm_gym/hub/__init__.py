"""Sharing on the Hugging Face hub: repositories up and down, the files in them, and their generated cards.

``remote`` is all that talks to the hub. ``results`` reads what ``agentprm eval`` and ``agentprm bench`` wrote, and ``cards``
writes ``README.md``. What goes into a repository is decided above, where models and panels are known. Nothing here loads torch.
"""

from agentprm_gym.hub.remote import PREFIX, Pushed, fetch, is_hub, upload

__all__ = ["PREFIX", "Pushed", "fetch", "is_hub", "upload"]
