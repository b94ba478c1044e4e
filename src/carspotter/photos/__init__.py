"""From files to arrays: table, curation, split, sealed test, images, augmentation."""
