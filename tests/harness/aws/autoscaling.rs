//! Auto Scaling as an instance sees it: wait states that last until they are completed, abandoned or
//! run out of heartbeats, and the health that an instance says it has.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::front::{Asked, Front, Manner, Reply};
use super::imds::{Data, Imds};
use super::keys::Keys;
use super::refusal::{Refusal, escaped, refused};

/// When a hook holds an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transition {
    /// Before it serves.
    Launching,
    /// Before it is taken away.
    Terminating,
}

impl Transition {
    fn name(self) -> &'static str {
        match self {
            Self::Launching => "autoscaling:EC2_INSTANCE_LAUNCHING",
            Self::Terminating => "autoscaling:EC2_INSTANCE_TERMINATING",
        }
    }
}

/// A lifecycle hook.
#[derive(Clone, Debug)]
pub struct Hook {
    /// Its name.
    pub name: String,
    /// When it holds an instance.
    pub transition: Transition,
    /// How long it waits for a heartbeat. Shorter than the 30 s that the real one takes at least.
    pub timeout: Duration,
    /// What happens then: `CONTINUE` or `ABANDON`.
    pub default: &'static str,
}

/// What an instance has asked for, once it was found right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// `CompleteLifecycleAction`: the hook and the result.
    Completed(String, String),
    /// `RecordLifecycleActionHeartbeat`: the hook.
    Heartbeat(String),
    /// `SetInstanceHealth`: the health.
    Health(String),
    /// A hook that ran out of heartbeats.
    Expired(String),
}

/// A fake of Auto Scaling with one group of one instance, which is the one of the metadata service.
#[derive(Debug)]
pub struct AutoScaling {
    front: Front,
    group: Group,
}

#[derive(Clone, Debug)]
struct Group(Arc<Mutex<Member>>);

/// The instance as its group has it.
#[derive(Debug)]
struct Member {
    hooks: Vec<Hook>,
    state: String,
    health: String,
    /// Hooks that hold it, and until when without a heartbeat.
    open: Vec<(String, Instant)>,
    actions: Vec<Action>,
    imds: Data,
}

impl AutoScaling {
    /// The group [`super::GROUP`], whose instance is not launched yet.
    pub fn start(keys: &Keys, imds: &Imds) -> Self {
        let group = Group(Arc::new(Mutex::new(Member {
            hooks: Vec::new(),
            state: "Pending".into(),
            health: "Healthy".into(),
            open: Vec::new(),
            actions: Vec::new(),
            imds: imds.data(),
        })));
        let (answering, keys) = (group.clone(), keys.clone());
        let front = Front::start(keys.clock.clone(), move |asked| {
            let answer = keys.check(asked).and_then(|()| answering.answer(asked));
            answer.unwrap_or_else(|refusal| refused(asked, &refusal))
        });
        Self { front, group }
    }

    /// Where it is: for `AWS_ENDPOINT_URL_AUTO_SCALING`.
    pub fn url(&self) -> String {
        self.front.url()
    }

    /// Behaves like this from now on.
    pub fn behave(&self, manner: Manner) {
        self.front.behave(manner);
    }

    /// Answers the next `count` requests with an error, then goes on as before.
    pub fn fail_next(&self, count: usize, status: u16, code: &'static str) {
        self.front.fail_next(count, status, code);
    }

    /// What was asked so far, whatever the answer.
    pub fn asked(&self) -> Vec<String> {
        self.front.asked()
    }

    /// Adds a hook that waits an hour and then abandons.
    pub fn hook(&self, name: &str, transition: Transition) {
        self.add_hook(Hook {
            name: name.into(),
            transition,
            timeout: Duration::from_secs(3600),
            default: "ABANDON",
        });
    }

    /// Adds a hook.
    pub fn add_hook(&self, hook: Hook) {
        self.group.member().hooks.push(hook);
    }

    /// Launches the instance: `Pending:Wait` if a hook holds it, else `InService`.
    pub fn launch(&self) {
        let mut member = self.group.member();
        member.join();
        member.imds.target_state("InService");
        member.enter("Pending", Transition::Launching);
    }

    /// Launches the instance into a warm pool: `Warmed:Pending:Wait` if a hook holds it, else
    /// `Warmed:Running`, `Warmed:Stopped`, as `target` says.
    pub fn launch_warm(&self, target: &str) {
        let mut member = self.group.member();
        member.join();
        member.imds.target_state(target);
        member.enter("Warmed:Pending", Transition::Launching);
    }

    /// Takes the instance out of the warm pool, past its launching hooks again.
    pub fn wake(&self) {
        self.launch();
    }

    /// Scales the instance in: `Terminating:Wait` if a hook holds it, else `Terminated`.
    pub fn terminate(&self) {
        let mut member = self.group.member();
        member.imds.target_state("Terminated");
        member.enter("Terminating", Transition::Terminating);
    }

    /// Where the instance is in its life: `Pending:Wait`, `InService`, ..
    pub fn state(&self) -> String {
        self.group.member().state.clone()
    }

    /// `Healthy` or `Unhealthy`.
    pub fn health(&self) -> String {
        self.group.member().health.clone()
    }

    /// What the instance has asked for, and what ran out.
    pub fn actions(&self) -> Vec<Action> {
        self.group.member().actions.clone()
    }

    /// How many heartbeats there were.
    pub fn heartbeats(&self) -> usize {
        let member = self.group.member();
        let beats = member.actions.iter();
        beats
            .filter(|action| matches!(action, Action::Heartbeat(_)))
            .count()
    }
}

impl Group {
    /// The instance as it is now: whoever ran out of heartbeats meanwhile has moved on.
    fn member(&self) -> MutexGuard<'_, Member> {
        let mut member = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        member.expire();
        member
    }

    fn answer(&self, asked: &Asked) -> Result<Reply, Refusal> {
        let fields = asked.fields();
        let field = |name: &str| {
            let found = fields.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.as_str())
        };
        let action = field("Action").unwrap_or_default();
        if field("Version") != Some("2011-01-01") {
            return Err(invalid("The version must be 2011-01-01"));
        }
        let mut member = self.member();
        let result = match action {
            "CompleteLifecycleAction" => member.complete(field)?,
            "RecordLifecycleActionHeartbeat" => member.heartbeat(field)?,
            "SetInstanceHealth" => member.set_health(field)?,
            "DescribeLifecycleHooks" => member.describe_hooks(field)?,
            "DescribeAutoScalingInstances" => member.describe(field),
            other => {
                let message = format!("The action {other} is not valid for this endpoint.");
                return Err(Refusal::new(400, "InvalidAction", message));
            }
        };
        let body = format!(
            "<{action}Response xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\">\
             <{action}Result>{result}</{action}Result>\
             <ResponseMetadata><RequestId>0</RequestId></ResponseMetadata></{action}Response>"
        );
        Ok(Reply::new(200, "text/xml", body))
    }
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(400, "ValidationError", message)
}

impl Member {
    /// Tags the instance as one of the group.
    fn join(&self) {
        let tag = "tags/instance/aws:autoscaling:groupName";
        self.imds.set(tag, super::GROUP);
    }

    /// Enters a state on the way to the next, held by the hooks of this transition.
    fn enter(&mut self, state: &str, transition: Transition) {
        let now = Instant::now();
        let hooks = self.hooks.iter();
        let held = hooks.filter(|hook| hook.transition == transition);
        self.open = held
            .map(|hook| (hook.name.clone(), now + hook.timeout))
            .collect();
        self.state = format!("{state}:Wait");
        if self.open.is_empty() {
            self.proceed("CONTINUE");
        }
    }

    /// Leaves a wait state with this result.
    fn proceed(&mut self, result: &str) {
        self.state = match (self.state.as_str(), result) {
            ("Pending:Wait", "CONTINUE") => "InService".into(),
            ("Warmed:Pending:Wait", "CONTINUE") => {
                let target = self.imds.value("autoscaling/target-lifecycle-state");
                target.unwrap_or_else(|| "Warmed:Stopped".into())
            }
            _ => {
                self.imds.target_state("Terminated");
                "Terminated".into()
            }
        };
    }

    /// A hook lets go; the last one, or one that abandons, lets the instance move on.
    fn release(&mut self, hook: &str, result: &str) {
        self.open.retain(|(name, _)| name != hook);
        if result == "ABANDON" {
            self.open.clear();
        }
        if self.open.is_empty() {
            self.proceed(result);
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        while let Some((name, _)) = self.open.iter().find(|(_, until)| *until <= now).cloned() {
            let hook = self.hooks.iter().find(|hook| hook.name == name);
            let default = hook.map_or("ABANDON", |hook| hook.default);
            self.actions.push(Action::Expired(name.clone()));
            self.release(&name, default);
        }
    }

    /// The hook that a request is about, which must hold the instance.
    fn held<'a>(&self, field: impl Fn(&str) -> Option<&'a str>) -> Result<String, Refusal> {
        let hook =
            field("LifecycleHookName").ok_or_else(|| invalid("LifecycleHookName is missing"))?;
        if field("AutoScalingGroupName") != Some(super::GROUP) {
            let group = field("AutoScalingGroupName").unwrap_or_default();
            return Err(invalid(format!(
                "AutoScalingGroup name not found - no such group: {group}"
            )));
        }
        if !self.hooks.iter().any(|known| known.name == hook) {
            return Err(invalid(format!(
                "No Lifecycle Hook found with name: {hook}"
            )));
        }
        let instance = field("InstanceId").unwrap_or_default();
        let open = self.open.iter().any(|(name, _)| name == hook);
        if instance != super::INSTANCE || !open {
            let message = format!("No active Lifecycle Action found with instance ID {instance}");
            return Err(invalid(message));
        }
        Ok(hook.to_owned())
    }

    fn complete<'a>(&mut self, field: impl Fn(&str) -> Option<&'a str>) -> Result<String, Refusal> {
        let hook = self.held(&field)?;
        let result = field("LifecycleActionResult").unwrap_or_default();
        if !["CONTINUE", "ABANDON"].contains(&result) {
            return Err(invalid(format!(
                "LifecycleActionResult {result:?} is no result"
            )));
        }
        self.actions
            .push(Action::Completed(hook.clone(), result.to_owned()));
        self.release(&hook, result);
        Ok(String::new())
    }

    fn heartbeat<'a>(
        &mut self,
        field: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<String, Refusal> {
        let hook = self.held(field)?;
        let known = self.hooks.iter().find(|known| known.name == hook);
        let timeout = known.map_or(Duration::ZERO, |known| known.timeout);
        for (name, until) in &mut self.open {
            if *name == hook {
                *until = Instant::now() + timeout;
            }
        }
        self.actions.push(Action::Heartbeat(hook));
        Ok(String::new())
    }

    fn set_health<'a>(
        &mut self,
        field: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<String, Refusal> {
        let instance = field("InstanceId").unwrap_or_default();
        if instance != super::INSTANCE || self.state == "Terminated" {
            let message = format!(
                "Instance Id not found - No managed instance found for instance ID: {instance}"
            );
            return Err(invalid(message));
        }
        let health = field("HealthStatus").unwrap_or_default();
        if !["Healthy", "Unhealthy"].contains(&health) {
            return Err(invalid(format!("Invalid health status: {health:?}")));
        }
        health.clone_into(&mut self.health);
        self.actions.push(Action::Health(health.to_owned()));
        Ok(String::new())
    }

    fn describe_hooks<'a>(
        &self,
        field: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<String, Refusal> {
        if field("AutoScalingGroupName") != Some(super::GROUP) {
            return Err(invalid("AutoScalingGroup name not found - null"));
        }
        let hooks = self.hooks.iter().map(|hook| {
            format!(
                "<member><LifecycleHookName>{}</LifecycleHookName>\
                 <AutoScalingGroupName>{}</AutoScalingGroupName>\
                 <LifecycleTransition>{}</LifecycleTransition>\
                 <HeartbeatTimeout>{}</HeartbeatTimeout><GlobalTimeout>172800</GlobalTimeout>\
                 <DefaultResult>{}</DefaultResult></member>",
                escaped(&hook.name),
                super::GROUP,
                hook.transition.name(),
                hook.timeout.as_secs(),
                hook.default,
            )
        });
        let hooks: String = hooks.collect();
        Ok(format!("<LifecycleHooks>{hooks}</LifecycleHooks>"))
    }

    fn describe<'a>(&self, field: impl Fn(&str) -> Option<&'a str>) -> String {
        let asked = field("InstanceIds.member.1");
        let joined = self
            .imds
            .value("autoscaling/target-lifecycle-state")
            .is_some();
        let found = joined && asked.is_none_or(|id| id == super::INSTANCE);
        let instance = format!(
            "<member><InstanceId>{}</InstanceId><InstanceType>inf2.xlarge</InstanceType>\
             <AutoScalingGroupName>{}</AutoScalingGroupName>\
             <AvailabilityZone>us-west-2a</AvailabilityZone>\
             <LifecycleState>{}</LifecycleState><HealthStatus>{}</HealthStatus>\
             <ProtectedFromScaleIn>false</ProtectedFromScaleIn></member>",
            super::INSTANCE,
            super::GROUP,
            self.state,
            self.health.to_uppercase(),
        );
        let instance = if found { instance } else { String::new() };
        format!("<AutoScalingInstances>{instance}</AutoScalingInstances>")
    }
}
