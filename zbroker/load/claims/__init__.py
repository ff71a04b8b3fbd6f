"""What is said of Kafka's design, claim by claim: each is measured here, and judged by a rule that is written down."""
