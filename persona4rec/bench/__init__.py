"""What a rerank costs, against an echo that answers the same bytes under the same server."""
