"""What several tests build on: pictures, and a repository around a tiny backbone."""
