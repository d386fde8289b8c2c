"""Generated from proto/topwork/v1 by `make proto`; never edited."""
