"""Pages and pictures for people: the report, the comparison, the overlay."""
