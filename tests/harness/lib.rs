//! The harness: starts a real server on a free port and talks to it over a real socket.
