//! The instance metadata service, version 2 only: what this machine is, and what is about to happen
//! to it. Tokens are fetched and refreshed by the SDK's client.

use std::time::Duration;

use aws_config::imds::client::Client;
use aws_config::imds::client::error::ImdsError;
use aws_config::provider_config::ProviderConfig;

use super::account::told;

/// How long the service may take to accept a connection, and to answer. It is on the machine's own
/// link; who cannot reach it has a hop limit or a firewall in between.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often a question is put.
const ATTEMPTS: u32 = 3;

/// The tag that names the path of the settings in the parameter store. Tags that the metadata service
/// shows may hold no `/`.
const PREFIX_TAG: &str = "appliance:ssm-prefix";

/// The tag by which Auto Scaling marks its instances.
const GROUP_TAG: &str = "aws:autoscaling:groupName";

/// The metadata service. Cloning shares its token.
#[derive(Clone, Debug)]
pub struct Imds(Client);

/// Why the metadata service does not answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the instance metadata service does not answer: {0}")]
pub struct Silent(String);

/// What the machine is. What could not be found out is `None`.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Identity {
    /// `i-0123456789abcdef0`.
    pub instance: Option<String>,
    /// `inf2.xlarge`.
    pub kind: Option<String>,
    /// `us-east-1`.
    pub region: Option<String>,
    /// `us-east-1a`.
    pub zone: Option<String>,
    /// The Auto Scaling group it belongs to.
    pub group: Option<String>,
    /// The path of its settings in the parameter store, by its tag.
    pub prefix: Option<String>,
}

impl Imds {
    /// The service, at the address that the SDK's own variables give.
    pub(super) fn new(provider: &ProviderConfig) -> Self {
        Self(
            Client::builder()
                .configure(provider)
                .connect_timeout(PATIENCE)
                .read_timeout(PATIENCE)
                .max_attempts(ATTEMPTS)
                .build(),
        )
    }

    /// What stands at `path`, such as `instance-id`; `None` if nothing does.
    ///
    /// # Errors
    /// The service does not answer.
    pub async fn get(&self, path: &str) -> Result<Option<String>, Silent> {
        self.read(&format!("/latest/meta-data/{path}")).await
    }

    /// The user data that the instance was launched with.
    ///
    /// # Errors
    /// The service does not answer.
    pub async fn user_data(&self) -> Result<Option<String>, Silent> {
        self.read("/latest/user-data").await
    }

    async fn read(&self, path: &str) -> Result<Option<String>, Silent> {
        match self.0.get(path).await {
            Ok(text) => Ok(Some(text.as_ref().to_owned())),
            Err(ImdsError::ErrorResponse(answer)) if answer.response().status().as_u16() == 404 => {
                Ok(None)
            }
            Err(error) => Err(Silent(told(&error))),
        }
    }

    /// What the machine is, as far as the service tells.
    pub async fn identity(&self) -> Identity {
        let mut identity = Identity::default();
        let facts: [(&str, &mut Option<String>); 6] = [
            ("instance-id", &mut identity.instance),
            ("instance-type", &mut identity.kind),
            ("placement/region", &mut identity.region),
            ("placement/availability-zone", &mut identity.zone),
            (&format!("tags/instance/{GROUP_TAG}"), &mut identity.group),
            (&format!("tags/instance/{PREFIX_TAG}"), &mut identity.prefix),
        ];
        for (path, fact) in facts {
            match self.get(path).await {
                Ok(found) => *fact = found.filter(|text| !text.is_empty()),
                Err(silent) => {
                    tracing::warn!("{silent}; what it would tell of this instance is not known");
                    break;
                }
            }
        }
        identity
    }
}
