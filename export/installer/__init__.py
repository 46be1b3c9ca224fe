"""The installer of an exported app. It runs on the device, from `install.pyz`: standard library
alone, Python 3.10 or newer, nothing of the rest of pocketmoe."""
