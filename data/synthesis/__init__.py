"""From documents to verified long-context questions (section 3 of the report)."""
