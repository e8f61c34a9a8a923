"""What was answered before it was certain: kept outside the process that answered, until any process finishes it."""
