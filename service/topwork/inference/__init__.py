"""Generated from proto/topwork/inference by `make proto`; never edited."""
