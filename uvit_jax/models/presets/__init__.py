"""Published and unified models as plain config dicts; importing these is cheap."""
