"""A trained run in use: the classifier, added classes, predictions, export."""
