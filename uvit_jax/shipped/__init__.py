"""Small trained networks that are part of the package; `manifest.json` lists them."""
