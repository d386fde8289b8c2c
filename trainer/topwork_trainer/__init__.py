"""The offline half of Topwork: from folders of photos to a bundle. Needs torch."""
