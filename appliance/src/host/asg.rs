//! The instance's Auto Scaling group: its lifecycle hooks, and how the instance says that it is not well.

use std::time::Duration;

use aws_sdk_autoscaling::Client;
use aws_sdk_autoscaling::error::{ProvideErrorMetadata, SdkError};

use super::Account;
use super::account::told;

/// What a hook waits for at the least, for those whose own time is not known.
const SHORTEST: Duration = Duration::from_secs(30);

/// The longest pause between two heartbeats, whatever a hook says.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What the names of our hooks hold, where a group has several for the same transition.
const OURS: &str = "appliance";

/// When a hook holds an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transition {
    /// Before it is in service.
    Launching,
    /// Before it is taken away.
    Terminating,
}

impl Transition {
    /// As Auto Scaling writes it.
    fn name(self) -> &'static str {
        match self {
            Self::Launching => "autoscaling:EC2_INSTANCE_LAUNCHING",
            Self::Terminating => "autoscaling:EC2_INSTANCE_TERMINATING",
        }
    }

    /// The setting that names its hook.
    fn setting(self) -> &'static str {
        match self {
            Self::Launching => "launch-hook",
            Self::Terminating => "terminate-hook",
        }
    }
}

/// What becomes of an instance that a hook has held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It goes on to where it was going.
    Continue,
    /// It is given up.
    Abandon,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Continue => "CONTINUE",
            Self::Abandon => "ABANDON",
        }
    }
}

/// A lifecycle hook that we answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hook {
    /// Its name.
    pub name: String,
    /// How often it is told that we are at work.
    pub pause: Duration,
}

/// Why Auto Scaling has not done what it was asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AsgError {
    /// No hook holds the instance, or no longer.
    #[error("no hook holds the instance: {0}")]
    NotHeld(String),
    /// The instance's role lacks a permission.
    #[error("the instance may not autoscaling:{action}: {why}; allow it in the role's policy")]
    Denied {
        /// What was asked.
        action: &'static str,
        /// What AWS said.
        why: String,
    },
    /// It cannot be reached, throttles, or failed.
    #[error("Auto Scaling does not answer {action}: {why}")]
    Away {
        /// What was asked.
        action: &'static str,
        /// What happened instead.
        why: String,
    },
}

impl AsgError {
    /// Whether asking again may help.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Away { .. })
    }

    fn of<E, R>(action: &'static str, error: &SdkError<E, R>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
        R: std::fmt::Debug + 'static,
    {
        let why = told(error);
        match error.code() {
            Some("ValidationError") => Self::NotHeld(error.message().unwrap_or(&why).to_owned()),
            Some("AccessDenied" | "AccessDeniedException" | "UnauthorizedOperation") => {
                Self::Denied { action, why }
            }
            _ => Self::Away { action, why },
        }
    }
}

/// The group, for the one instance that we are. Cloning shares the client.
#[derive(Clone, Debug)]
pub struct Group {
    client: Client,
    name: String,
    instance: String,
}

impl Group {
    /// The group that the instance belongs to, by its tag or as Auto Scaling says; `None` if it is in none.
    ///
    /// # Errors
    /// No tag tells, and Auto Scaling does not.
    pub async fn find(account: &Account) -> Result<Option<Self>, AsgError> {
        let Some(instance) = account.identity.instance.clone() else {
            return Ok(None);
        };
        let client = Client::new(&account.sdk);
        if let Some(name) = account.identity.group.clone() {
            return Ok(Some(Self {
                client,
                name,
                instance,
            }));
        }
        let asked = client
            .describe_auto_scaling_instances()
            .instance_ids(&instance)
            .send()
            .await;
        let answer = asked.map_err(|error| AsgError::of("DescribeAutoScalingInstances", &error))?;
        let found = answer.auto_scaling_instances().first();
        let name = found.and_then(|found| found.auto_scaling_group_name());
        Ok(name.map(|name| Self {
            client,
            name: name.to_owned(),
            instance,
        }))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The hook of a transition that we answer: the one that the setting names, else the group's only one, or
    /// the one of several whose name says that it is ours.
    ///
    /// # Errors
    /// The group's hooks are not told, and the setting names none.
    pub async fn hook(
        &self,
        transition: Transition,
        setting: Option<&str>,
    ) -> Result<Option<Hook>, AsgError> {
        let asked = (self.client.describe_lifecycle_hooks())
            .auto_scaling_group_name(&self.name)
            .send()
            .await;
        let all = match (asked, setting) {
            (Ok(answer), _) => answer.lifecycle_hooks.unwrap_or_default(),
            // Its name is all that is needed.
            (Err(_), Some(_)) => Vec::new(),
            (Err(error), None) => return Err(AsgError::of("DescribeLifecycleHooks", &error)),
        };
        let hooks = all.into_iter().filter_map(|hook| {
            let is_of_it = hook.lifecycle_transition() == Some(transition.name());
            let name = hook.lifecycle_hook_name.clone().filter(|_| is_of_it)?;
            let seconds = hook.heartbeat_timeout().unwrap_or_default();
            let timeout = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
            Some(Hook {
                name,
                pause: pause(timeout),
            })
        });
        let hooks: Vec<_> = hooks.collect();
        if let Some(name) = setting {
            let known = hooks.into_iter().find(|hook| hook.name == name);
            return Ok(Some(known.unwrap_or_else(|| Hook {
                name: name.to_owned(),
                pause: pause(SHORTEST),
            })));
        }
        let chosen = ours(&hooks);
        if chosen.is_none() && !hooks.is_empty() {
            let names: Vec<_> = hooks.iter().map(|hook| hook.name.as_str()).collect();
            let (setting, names) = (transition.setting(), names.join(", "));
            tracing::warn!(
                "which of the hooks {names} is for us is not known: name it with {setting}"
            );
        }
        Ok(chosen.cloned())
    }

    /// Tells a hook that we are at work: it waits its time from now on.
    ///
    /// # Errors
    /// It does not hold the instance, or Auto Scaling does not answer.
    pub async fn heartbeat(&self, hook: &Hook) -> Result<(), AsgError> {
        let asked = (self.client.record_lifecycle_action_heartbeat())
            .auto_scaling_group_name(&self.name)
            .lifecycle_hook_name(&hook.name)
            .instance_id(&self.instance)
            .send();
        let answer = asked.await.map(drop);
        answer.map_err(|error| AsgError::of("RecordLifecycleActionHeartbeat", &error))
    }

    /// Lets the instance go on from where a hook holds it, or gives it up.
    ///
    /// # Errors
    /// It does not hold the instance, or Auto Scaling does not answer.
    pub async fn complete(&self, hook: &Hook, outcome: Outcome) -> Result<(), AsgError> {
        let asked = (self.client.complete_lifecycle_action())
            .auto_scaling_group_name(&self.name)
            .lifecycle_hook_name(&hook.name)
            .instance_id(&self.instance)
            .lifecycle_action_result(outcome.name())
            .send();
        let answer = asked.await.map(drop);
        answer.map_err(|error| AsgError::of("CompleteLifecycleAction", &error))
    }

    /// Says that the instance is not well: the group replaces it.
    ///
    /// # Errors
    /// Auto Scaling does not answer, or does not let us.
    pub async fn unhealthy(&self) -> Result<(), AsgError> {
        let asked = (self.client.set_instance_health())
            .instance_id(&self.instance)
            .health_status("Unhealthy")
            .should_respect_grace_period(false)
            .send();
        let answer = asked.await.map(drop);
        answer.map_err(|error| AsgError::of("SetInstanceHealth", &error))
    }
}

/// The hook among several that is for us.
fn ours(hooks: &[Hook]) -> Option<&Hook> {
    match hooks {
        [only] => Some(only),
        several => several.iter().find(|hook| hook.name.contains(OURS)),
    }
}

/// How often a hook that waits so long is told that we are at work.
fn pause(timeout: Duration) -> Duration {
    (timeout / 3).clamp(Duration::from_secs(1), LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(name: &str) -> Hook {
        Hook {
            name: name.to_owned(),
            pause: pause(SHORTEST),
        }
    }

    #[test]
    fn the_only_hook_is_ours_and_of_several_the_one_that_says_so() {
        let [one, other, named] = ["drain", "snapshot", "appliance-ready"].map(hook);
        assert_eq!(ours(&[]), None);
        assert_eq!(ours(std::slice::from_ref(&one)), Some(&one));
        assert_eq!(ours(&[one.clone(), other.clone()]), None);
        let all = [one, other, named];
        assert_eq!(ours(&all), Some(&all[2]));
    }

    #[test]
    fn a_heartbeat_comes_well_before_a_hook_runs_out() {
        let seconds = Duration::from_secs;
        assert_eq!(pause(seconds(30)), seconds(10));
        assert_eq!(pause(seconds(7200)), seconds(30));
        assert_eq!(pause(seconds(0)), seconds(1));
    }
}
