"""The commands `study`, from photos to a page, and `kaggle`. All but `kaggle fetch` need a checkout."""
