//! For whom: HTTP, access, text, metrics, and the life of the server on a host.
