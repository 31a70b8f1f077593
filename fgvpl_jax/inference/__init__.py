"""Use of a trained run: the classifier, added classes, predictions and export."""
