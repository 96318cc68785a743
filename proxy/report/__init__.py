"""What came of a migration or of a rewritten file: the report, the times in it, and reading reports again."""
