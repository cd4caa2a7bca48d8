//! The AWS account that the server may speak to: where, and with whose credentials.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_types::error::display::DisplayErrorContext;

use super::imds::{Identity, Imds};
use crate::config::Cloud;

/// Who made the machine, as its firmware says. Readable by anybody.
const VENDOR: &str = "/sys/class/dmi/id/sys_vendor";

/// The variable by which the metadata service is somewhere else, as in tests.
const METADATA: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";

/// How long AWS may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(3);

/// How long one attempt of a call may take.
const ATTEMPT: Duration = Duration::from_secs(20);

/// How often a call is tried, pauses between them growing.
const ATTEMPTS: u32 = 3;

/// An account, and the machine's place in it. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Account {
    /// Region, credentials and transport of every client.
    pub sdk: SdkConfig,
    /// What the machine is, if it could be found out.
    pub identity: Identity,
    /// The metadata service, where there is one.
    pub imds: Option<Imds>,
}

/// Why there is no account.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// AWS is wanted, and nothing says in which region.
    #[error(
        "cloud is aws, and no region is known: set AWS_REGION, or let the instance reach its metadata service"
    )]
    Region,
}

impl Account {
    /// The account that this machine is in, or `None` if it is in none.
    ///
    /// # Errors
    /// An account is wanted, and cannot be made out.
    pub async fn open(cloud: Cloud) -> Result<Option<Self>, AccountError> {
        let on_ec2 = made_by_amazon(Path::new(VENDOR)) || std::env::var_os(METADATA).is_some();
        match cloud {
            Cloud::None => return Ok(None),
            Cloud::Auto if !on_ec2 => return Ok(None),
            Cloud::Auto | Cloud::Aws => {}
        }
        let client = aws_smithy_http_client::Builder::new()
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .build_https();
        let named = ["AWS_REGION", "AWS_DEFAULT_REGION"]
            .into_iter()
            .find_map(|name| std::env::var(name).ok().filter(|region| !region.is_empty()));
        let imds = match std::env::var("AWS_EC2_METADATA_DISABLED") {
            Ok(value) if value.eq_ignore_ascii_case("true") => None,
            // A workstation with an account: nobody there would answer.
            _ if !on_ec2 && named.is_some() => None,
            _ => Some(Imds::new(
                &ProviderConfig::default().with_http_client(client.clone()),
            )),
        };
        let identity = match &imds {
            Some(imds) => imds.identity().await,
            None => Identity::default(),
        };
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT)
            .operation_attempt_timeout(ATTEMPT)
            .build();
        let region = named.or_else(|| identity.region.clone());
        let region = match region {
            Some(region) => Region::new(region),
            None if cloud == Cloud::Aws => return Err(AccountError::Region),
            None => {
                tracing::warn!(
                    "on EC2 by the look of it, but the metadata service does not say in which region: \
                     going on without AWS; set AWS_REGION or cloud = \"none\""
                );
                return Ok(None);
            }
        };
        let sdk = aws_config::defaults(BehaviorVersion::latest())
            .http_client(client)
            .region(region)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(timeouts)
            .load()
            .await;
        Ok(Some(Self {
            sdk,
            identity,
            imds,
        }))
    }
}

/// Whether the firmware's vendor file at `path` says that the machine is one of EC2's.
fn made_by_amazon(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|vendor| vendor.trim() == "Amazon EC2")
}

/// All that an error of the SDK has to say, on one line.
pub(crate) fn told(error: &(dyn Error + 'static)) -> String {
    let all = DisplayErrorContext(error).to_string();
    // What follows is the debug form of the whole response. The code of the error, in parentheses too, is
    // not to go with it.
    let debug = format!(" ({error:?})");
    let short = all.strip_suffix(&debug).unwrap_or(&all);
    let short: String = short
        .chars()
        .filter(|c| !c.is_control())
        .take(300)
        .collect();
    short.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_with_its_causes_and_without_the_whole_response() {
        #[derive(Debug, thiserror::Error)]
        #[error("unhandled error (ExpiredToken)")]
        struct Inner;
        #[derive(Debug, thiserror::Error)]
        #[error("service error")]
        struct Outer(#[source] Inner);
        let told = told(&Outer(Inner));
        assert_eq!(told, "service error: unhandled error (ExpiredToken)");
    }

    #[test]
    fn the_vendor_tells_a_machine_of_ec2() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sys_vendor");
        assert!(!made_by_amazon(&path));
        std::fs::write(&path, "QEMU\n").unwrap();
        assert!(!made_by_amazon(&path));
        std::fs::write(&path, "Amazon EC2\n").unwrap();
        assert!(made_by_amazon(&path));
    }
}
