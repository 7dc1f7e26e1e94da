"""A job's life: steps of micro-batches, layer after layer, until every prompt has its answer."""
