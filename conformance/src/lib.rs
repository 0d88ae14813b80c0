//! What proves Bulkhead.
