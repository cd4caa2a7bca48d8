//! The fake metadata service is as strict as the real one.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use appliance_tests::aws::namespace::{Container, alone};
use appliance_tests::aws::{Account, GROUP, INSTANCE, Imds, Keys, Manner, REAL};
use appliance_tests::{Connection, Model, Request, Response, Server, eventually};

use crate::exchange;

const TOKEN: &str = "x-aws-ec2-metadata-token";
const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";

fn put(imds: &Imds, ttl: &str) -> Response {
    exchange(
        &imds.url(),
        &Request::new("PUT", "/latest/api/token").header(TTL, ttl),
    )
}

fn token(imds: &Imds) -> String {
    let response = put(imds, "21600");
    assert_eq!(response.status(), 200);
    assert_eq!(response.header(TTL), Some("21600"));
    response.text()
}

fn get(imds: &Imds, token: &str, path: &str) -> Response {
    let target = format!("/latest/{path}");
    exchange(&imds.url(), &Request::get(&target).header(TOKEN, token))
}

fn read(imds: &Imds, path: &str) -> String {
    let response = get(imds, &token(imds), path);
    assert_eq!(response.status(), 200, "{path}");
    response.text()
}

#[test]
fn a_token_is_asked_for_with_a_lifetime_of_up_to_six_hours() {
    let imds = Imds::start(&Keys::default());
    for wrong in ["0", "21601", "-1", "soon", ""] {
        assert_eq!(put(&imds, wrong).status(), 400, "{wrong:?}");
    }
    let without = exchange(&imds.url(), &Request::new("PUT", "/latest/api/token"));
    assert_eq!(without.status(), 400);
    assert_eq!(put(&imds, "1").status(), 200);
}

#[test]
fn nothing_is_told_without_a_token_that_lasts() {
    let imds = Imds::start(&Keys::default());
    let without = exchange(&imds.url(), &Request::get("/latest/meta-data/instance-id"));
    assert_eq!(without.status(), 401);
    assert_eq!(get(&imds, "made-up", "meta-data/instance-id").status(), 401);
    let short = put(&imds, "1").text();
    assert_eq!(get(&imds, &short, "meta-data/instance-id").text(), INSTANCE);
    eventually("a token of a second expires", || {
        get(&imds, &short, "meta-data/instance-id").status() == 401
    });
}

#[test]
fn who_came_through_a_proxy_gets_no_token() {
    let imds = Imds::start(&Keys::default());
    let request = Request::new("PUT", "/latest/api/token").header(TTL, "60");
    let forwarded = exchange(&imds.url(), &request.header("x-forwarded-for", "10.0.0.9"));
    assert_eq!(forwarded.status(), 403);
}

#[test]
fn folders_are_listed_and_values_change_while_it_runs() {
    let imds = Imds::start(&Keys::default());
    let listing = read(&imds, "meta-data/");
    assert!(
        listing.lines().any(|line| line == "placement/"),
        "{listing}"
    );
    assert!(
        listing.lines().any(|line| line == "instance-id"),
        "{listing}"
    );
    assert_eq!(
        read(&imds, "meta-data/placement/"),
        "availability-zone\nregion"
    );
    let token = token(&imds);
    for path in [
        "tags/instance/",
        "spot/instance-action",
        "events/recommendations/rebalance",
    ] {
        assert_eq!(
            get(&imds, &token, &format!("meta-data/{path}")).status(),
            404,
            "{path}"
        );
    }
    imds.tag("appliance:ssm-prefix", "/appliance/test");
    assert_eq!(
        read(&imds, "meta-data/tags/instance/appliance:ssm-prefix"),
        "/appliance/test"
    );
    imds.spot_notice(120);
    assert!(read(&imds, "meta-data/spot/instance-action").contains("terminate"));
    imds.rebalance();
    assert!(read(&imds, "meta-data/events/recommendations/rebalance").contains("noticeTime"));
    assert_eq!(get(&imds, &token, "user-data").status(), 404);
    imds.user_data("model = \"here\"");
    assert_eq!(read(&imds, "user-data"), "model = \"here\"");
    imds.remove("spot/instance-action");
    assert_eq!(
        get(&imds, &token, "meta-data/spot/instance-action").status(),
        404
    );
    assert!(read(&imds, "dynamic/instance-identity/document").contains(INSTANCE));
}

#[test]
fn credentials_of_the_role_expire_and_are_new_each_time() {
    let imds = Imds::start(&Keys::default());
    let role = read(&imds, "meta-data/iam/security-credentials/");
    let path = format!("meta-data/iam/security-credentials/{role}");
    let (one, other) = (read(&imds, &path), read(&imds, &path));
    assert!(one.contains("Expiration"), "{one}");
    assert_ne!(one, other);
    imds.role(None);
    assert_eq!(
        get(&imds, &token(&imds), "meta-data/iam/security-credentials/").status(),
        404
    );
}

#[test]
fn it_can_be_away_slow_and_busy() {
    let imds = Imds::start(&Keys::default());
    let address = imds.url().trim_start_matches("http://").parse().unwrap();
    imds.behave(Manner::Refuses);
    let refused = Connection::open(address)
        .and_then(|mut connection| connection.exchange(&Request::get("/latest/meta-data/")));
    assert!(
        matches!(
            refused.as_ref().map_err(std::io::Error::kind),
            Err(ErrorKind::ConnectionRefused)
        ),
        "{refused:?}"
    );
    imds.behave(Manner::Works);
    imds.fail_next(2, 503);
    assert_eq!(put(&imds, "60").status(), 503);
    assert_eq!(put(&imds, "60").status(), 503);
    assert_eq!(put(&imds, "60").status(), 200);
    imds.behave(Manner::Hangs);
    let mut connection = Connection::open(address).unwrap();
    connection
        .send(&Request::new("PUT", "/latest/api/token").header(TTL, "60"))
        .unwrap();
    eventually("the request is read", || imds.tokens() == 4);
    imds.behave(Manner::Works);
    assert_eq!(connection.response().unwrap().status(), 200);
    imds.behave(Manner::Fails(429, "Throttled"));
    assert_eq!(put(&imds, "60").status(), 429);
}

#[test]
fn an_account_joins_its_group_when_it_is_launched() {
    let account = Account::open();
    let state = "meta-data/autoscaling/target-lifecycle-state";
    assert_eq!(
        get(&account.imds, &token(&account.imds), state).status(),
        404
    );
    account.autoscaling.launch();
    assert_eq!(read(&account.imds, state), "InService");
    let group = read(
        &account.imds,
        "meta-data/tags/instance/aws:autoscaling:groupName",
    );
    assert_eq!(group, GROUP);
    account.autoscaling.terminate();
    assert_eq!(read(&account.imds, state), "Terminated");
}

#[test]
fn the_server_finds_the_service_at_its_real_address() {
    alone(
        "imds::the_server_finds_the_service_at_its_real_address",
        || {
            let account =
                Account::open_at_real_address().expect("the address of a network of its own");
            account.autoscaling.launch();
            let flags = ["--cloudwatch-interval", "200ms"];
            let _server = Server::start_with(&account.environment(), &Model::chain(), &flags);
            eventually("CloudWatch is told of the group", || {
                let told = account.cloudwatch.data("Running");
                told.iter()
                    .any(|datum| datum.dimension("AutoScalingGroupName") == Some(GROUP))
            });
            assert!(account.imds.tokens() >= 1);
        },
    );
}

#[test]
fn a_token_goes_no_further_than_the_hop_limit() {
    alone("imds::a_token_goes_no_further_than_the_hop_limit", || {
        let imds = Imds::start_at_real_address(&Keys::default()).expect("the address");
        let container = Container::behind_a_host().expect("networks, one behind the other");
        assert!(container.on_the_host(token_arrives), "one hop");
        assert!(
            !container.inside(token_arrives),
            "two hops, and one is allowed"
        );
        imds.hop_limit(2);
        assert!(
            container.inside(token_arrives),
            "two hops, and two are allowed"
        );
    });
}

/// Whether the answer to who asks for a token comes. One that does not is waited for for a while.
fn token_arrives() -> bool {
    let mut stream =
        TcpStream::connect(SocketAddr::from(REAL)).expect("packets get there and back");
    let patience = Duration::from_secs(2);
    stream.set_read_timeout(Some(patience)).expect("a bound");
    let request = Request::new("PUT", "/latest/api/token").header(TTL, "60");
    stream
        .write_all(&request.bytes())
        .expect("the request is sent");
    matches!(stream.read(&mut [0; 64]), Ok(read) if read > 0)
}
