//! moto behind our manners: what is put in comes out, a policy binds, and it can be away.

use appliance_tests::Request;
use appliance_tests::aws::{Keys, Manner, Moto};

use crate::exchange;

#[test]
fn what_is_put_into_moto_comes_out_of_it() {
    let Some(moto) = Moto::start(&Keys::default()) else {
        return;
    };
    moto.put_parameter("/appliance/test/model", "one");
    moto.put_parameter("/appliance/test/model", "other");
    moto.put_secret("/appliance/test/keys", "hidden");
    let read = |name| moto.read_parameter(name);
    assert_eq!(read("/appliance/test/model").as_deref(), Some("other"));
    assert_eq!(read("/appliance/test/keys").as_deref(), Some("hidden"));
    assert_eq!(read("/appliance/test/none"), None);
    moto.bucket("models");
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    moto.put_object("models", "tiny/weights", bytes.clone());
    assert_eq!(moto.object("models", "tiny/weights"), Some(bytes.clone()));
    // The same through the front, which the server uses.
    let range = Request::bare("GET", "/models/tiny/weights")
        .header("host", "localhost")
        .header(
            "authorization",
            "AWS4-HMAC-SHA256 Credential=TEST/20260101/us-west-2/s3/aws4_request",
        )
        .header("range", "bytes=10-19");
    let part = exchange(&moto.url(), &range);
    assert_eq!((part.status(), &part.body[..]), (206, &bytes[10..20]));
    moto.fail_next(1, 503, "SlowDown");
    assert_eq!(exchange(&moto.url(), &range).status(), 503);
    assert_eq!(exchange(&moto.url(), &range).status(), 206);
    moto.behave(Manner::Fails(500, "InternalError"));
    assert_eq!(exchange(&moto.url(), &range).status(), 500);
    assert_eq!(moto.count("GET /models/tiny/weights"), 4);
}
