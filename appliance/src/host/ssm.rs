//! The parameter store: settings by path, and the status that the instance writes there.

use std::collections::BTreeMap;

use aws_sdk_ssm::Client;
use aws_sdk_ssm::error::ProvideErrorMetadata as _;
use aws_sdk_ssm::types::ParameterType;

use super::Account;
use super::account::told;

/// Parameters that one path may hold: more are somebody else's.
const MOST: usize = 1000;

/// The parameters under one path. Cloning shares the client.
#[derive(Clone, Debug)]
pub struct Parameters {
    client: Client,
    prefix: String,
}

/// Why the parameter store does not answer as asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SsmError {
    /// It wants to be asked less often.
    #[error("the parameter store is throttling calls")]
    Throttled,
    /// The instance's role lacks a permission.
    #[error("the instance may not {action} {path}: {why}; allow it in the role's policy")]
    Denied {
        /// What was asked, as IAM calls it.
        action: &'static str,
        /// Where.
        path: String,
        /// What AWS said.
        why: String,
    },
    /// It cannot be reached, or failed.
    #[error("the parameter store does not answer {action} {path}: {why}")]
    Away {
        /// What was asked.
        action: &'static str,
        /// Where.
        path: String,
        /// What happened instead.
        why: String,
    },
    /// There is more than settings.
    #[error("{0} holds more than {MOST} parameters: give the appliance a path of its own")]
    TooMany(String),
}

impl Parameters {
    /// The parameters under `prefix`, which begins with `/` and does not end with one.
    pub fn new(account: &Account, prefix: &str) -> Self {
        Self {
            client: Client::new(&account.sdk),
            prefix: prefix.to_owned(),
        }
    }

    /// The path.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Every parameter under the path but the status of instances, by what follows the path, secrets
    /// decrypted.
    ///
    /// # Errors
    /// They cannot all be had.
    pub async fn read(&self) -> Result<BTreeMap<String, String>, SsmError> {
        let mut found = BTreeMap::new();
        let mut pages = (self.client.get_parameters_by_path())
            .path(&self.prefix)
            .recursive(true)
            .with_decryption(true)
            .into_paginator()
            .send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| {
                let code = error.as_service_error().and_then(|error| error.code());
                self.failed("ssm:GetParametersByPath", &self.prefix, code, &error)
            })?;
            for parameter in page.parameters() {
                let (Some(name), Some(value)) = (parameter.name(), parameter.value()) else {
                    continue;
                };
                let Some(key) = name.strip_prefix(&self.prefix) else {
                    continue;
                };
                let key = key.trim_start_matches('/');
                if !key.starts_with("status/") {
                    found.insert(key.to_owned(), value.to_owned());
                }
            }
            if found.len() > MOST {
                return Err(SsmError::TooMany(self.prefix.clone()));
            }
        }
        Ok(found)
    }

    /// Writes the status of `instance`: a JSON text of at most 4 KB.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn write_status(&self, instance: &str, status: &str) -> Result<(), SsmError> {
        let path = format!("{}/status/{instance}", self.prefix);
        let put = (self.client.put_parameter())
            .name(&path)
            .value(status)
            .r#type(ParameterType::String)
            .overwrite(true)
            .send();
        put.await.map(drop).map_err(|error| {
            let code = error.as_service_error().and_then(|error| error.code());
            self.failed("ssm:PutParameter", &path, code, &error)
        })
    }

    fn failed(
        &self,
        action: &'static str,
        path: &str,
        code: Option<&str>,
        error: &(dyn std::error::Error + 'static),
    ) -> SsmError {
        let path = path.to_owned();
        match code {
            Some("ThrottlingException" | "TooManyUpdates" | "RequestLimitExceeded") => {
                SsmError::Throttled
            }
            Some(code @ ("AccessDeniedException" | "AccessDenied")) => SsmError::Denied {
                action,
                path,
                why: code.to_owned(),
            },
            _ => SsmError::Away {
                action,
                path,
                why: told(error),
            },
        }
    }
}
