"""What other frameworks need to do the same work, so that the suite's own figures have a yardstick."""
