//! Keys of clients in the parameter store.

use appliance_tests::{Request, Response, Server, appliance, eventually};

use crate::parameters::{Cloud, PATH};
use crate::{COMPLETIONS, completion, other};

/// A key made by the binary itself: the secret, and the line that stores it.
fn new_key(id: &str) -> (String, String) {
    let ended = appliance(["keys", "new", "--id", id]);
    let mut lines = ended.stdout.lines().map(str::to_owned);
    let key = (
        lines.next().expect("a key"),
        lines.next().expect("its line"),
    );
    let hint = format!("--name /appliance/default/keys/{id}");
    assert!(ended.stderr.contains(&hint), "{}", ended.stderr);
    key
}

fn ask(server: &Server, secret: &str) -> Response {
    let request = Request::post(COMPLETIONS, &completion("a", 2));
    server.exchange(&request.header("authorization", &format!("Bearer {secret}")))
}

#[test]
fn keys_of_the_parameter_store_are_followed_and_never_leave_it_open() {
    let Some(cloud) = Cloud::open("keys") else {
        return;
    };
    let [(one, first), (two, second), (three, third)] = ["one", "two", "three"].map(new_key);
    let path = |id: &str| format!("{PATH}/keys/{id}");
    cloud.moto.put_secret(&path("one"), &first);
    cloud.model(&other("keys-1"));
    let mut server = cloud.server(&[]);
    server.await_ready();
    assert_eq!(
        server.get("/v1/models").status(),
        401,
        "nobody is let in without one"
    );
    assert_eq!(ask(&server, &one).status(), 200);
    assert_eq!(ask(&server, &two).status(), 401);

    // One more in a parameter of its own, and one where all may stand.
    cloud.moto.put_secret(&path("two"), &second);
    cloud.moto.put_secret(&format!("{PATH}/keys"), &third);
    for secret in [&two, &three] {
        eventually("the new key is let in", || {
            ask(&server, secret).status() == 200
        });
    }
    cloud.moto.delete_parameter(&path("one"));
    eventually("the old key is not", || ask(&server, &one).status() == 401);

    // What is no key is refused with all that is new, and those of before stay.
    cloud
        .moto
        .put_secret(&path("four"), "{\"id\":\"four\",\"sha-256\":\"ab\"}");
    eventually("it is told", || {
        let refused = crate::status(&server)["refused"]
            .as_str()
            .map(str::to_owned);
        refused.is_some_and(|why| why.contains("did you mean \"sha256\""))
    });
    assert_eq!(ask(&server, &two).status(), 200);

    // When all are gone nobody new is let in, and the last of before is.
    cloud.moto.delete_parameter(&path("four"));
    cloud.moto.delete_parameter(&format!("{PATH}/keys"));
    eventually("the third is gone", || ask(&server, &three).status() == 401);
    cloud.moto.delete_parameter(&path("two"));
    eventually("it is told", || {
        server.log().contains("the keys stay until a restart")
    });
    assert_eq!(server.get("/v1/models").status(), 401);
    assert_eq!(ask(&server, &two).status(), 200);
    for secret in [&one, &two, &three] {
        assert!(!server.log().contains(secret), "keys are not for logs");
    }
}
