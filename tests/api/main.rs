//! What every answer must be, seen from a client.
