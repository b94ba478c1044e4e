"""What goes through the whole project: a study from photos to a page, notebooks to Kaggle. Needs a checkout."""
