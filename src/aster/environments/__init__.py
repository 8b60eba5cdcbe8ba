"""What is asked, with which tools, and what an attempt is worth."""
