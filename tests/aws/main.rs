//! The account that the server runs in: what it asks of AWS, and what it does when AWS does not
//! answer. The fakes are held to their own promises here too.

mod autoscaling;
mod cloudwatch;
mod imds;
mod moto;
mod objects;
mod policy;

use appliance_tests::{Connection, Request, Response};

/// Sends a request to a fake at `url` on a connection of its own.
fn exchange(url: &str, request: &Request) -> Response {
    let address = url.strip_prefix("http://").expect("a fake is on http");
    let address = address.parse().expect("an address and a port");
    let mut connection = Connection::open(address).expect("the fake listens");
    connection.exchange(request).expect("the fake answers")
}
