"""The services on the head of a cluster, beside Ray: PostgreSQL, MLflow and the keeper of searches. supervisord runs them."""
