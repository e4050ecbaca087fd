"""Papers' tables on other data: their rows trained, scored and set beside what was printed."""
