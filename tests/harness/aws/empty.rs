//! The services of an account that has nothing in them: what is asked for is not there.

use serde_json::json;

use super::front::{Asked, Front, Manner, Reply};
use super::keys::Keys;
use super::refusal::{Refusal, refused};

/// A parameter store without parameters, which takes what is put and keeps nothing, and no other
/// service. Enough for a server whose settings come from elsewhere.
#[derive(Debug)]
pub struct Empty(Front);

impl Empty {
    /// The services of the account, on a free port.
    pub fn start(keys: &Keys) -> Self {
        let checking = keys.clone();
        Self(Front::start(keys.clock.clone(), move |asked| {
            let answer = checking.check(asked).and_then(|()| answer(asked));
            answer.unwrap_or_else(|refusal| refused(asked, &refusal))
        }))
    }

    /// Where they are: for `AWS_ENDPOINT_URL`.
    pub fn url(&self) -> String {
        self.0.url()
    }

    /// Behave like this from now on.
    pub fn behave(&self, manner: Manner) {
        self.0.behave(manner);
    }

    /// What was asked so far: `GetParametersByPath`, `PutParameter`, ..
    pub fn asked(&self) -> Vec<String> {
        self.0.asked()
    }
}

fn answer(asked: &Asked) -> Result<Reply, Refusal> {
    let body = match asked.action().as_str() {
        "GetParametersByPath" => json!({"Parameters": []}),
        "PutParameter" => json!({"Version": 1, "Tier": "Standard"}),
        other => {
            let message = format!("there is no {other} here");
            return Err(Refusal::new(404, "NotFound", message));
        }
    };
    Ok(Reply::new(
        200,
        "application/x-amz-json-1.1",
        body.to_string(),
    ))
}
