"""Data sets in other projects' formats, read where they lie: CALVIN."""
