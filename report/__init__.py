"""The page that `report` writes about a calibration or a bundle."""
