//! Which device is here. Takes no core: the runtime is opened and asked, not started.

use std::path::Path;

use engine::Device;
use graph::Target;
use neuron_sys::PATH_VARIABLE;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use crate::nrt::{InstanceInfo, Libnrt, Version};

/// Where the driver's device nodes are, one for each chip: `neuron0`, `neuron1`, ..
const NODES: &str = "/dev";

/// The variable that says how many physical cores make a logical one.
const LOGICAL: &str = "NEURON_LOGICAL_NC_CONFIG";

/// What is here, as far as it can be told without starting the runtime.
#[derive(Clone, Debug)]
pub(crate) struct Here {
    /// Which library.
    pub(crate) library: String,
    /// Which runtime.
    pub(crate) version: Version,
    /// What it says of the instance.
    pub(crate) instance: InstanceInfo,
    /// What modules must be compiled for.
    pub(crate) target: Target,
    /// Physical cores of a logical one.
    pub(crate) lnc: u32,
    /// Logical cores of the instance, whoever has them.
    pub(crate) cores: u32,
    /// Logical cores that this process may take.
    pub(crate) visible: u32,
}

/// The device of this host, without taking any of its cores. Where there is none it looks at a
/// directory and no more.
///
/// # Errors
/// Why there is none that can be used, in words for whoever set it up.
pub fn probe() -> Result<Device, String> {
    let here = here()?;
    let Here {
        target,
        lnc,
        visible,
        ..
    } = here;
    Ok(Device {
        name: format!("{target} ({visible} logical cores)"),
        memory: target.facts().memory(lnc) * u64::from(visible),
        cores: visible,
    })
}

/// What is here, or why nothing is.
pub(crate) fn here() -> Result<Here, String> {
    // Whoever names a library has a device for it.
    let named = std::env::var_os(PATH_VARIABLE).is_some_and(|path| !path.is_empty());
    if !named {
        present(Path::new(NODES))?;
    }
    let libnrt = Libnrt::open(None).map_err(|error| error.to_string())?;
    let version = libnrt.version();
    let library = libnrt.path().display().to_string();
    let asked = |error| {
        format!(
            "{library} {version} is here and finds no device: {error}. Is the driver loaded and of \
             the same SDK? `ls /dev/neuron*` and `modinfo neuron` tell"
        )
    };
    let instance = libnrt.instance().map_err(asked)?;
    let cores = libnrt.total_cores().map_err(asked)?;
    let visible = libnrt.visible_cores().map_err(asked)?;
    let Some(target) = instance.target() else {
        return Err(format!(
            "the runtime says that this is {} (family {}), which this version does not know: it \
             serves Inferentia2, Trainium1, Trainium2 and Trainium3",
            instance.architecture, instance.family
        ));
    };
    if visible == 0 {
        return Err(format!(
            "of {cores} logical cores none is visible to this process: see NEURON_RT_VISIBLE_CORES"
        ));
    }
    let lnc = logical(std::env::var(LOGICAL).ok(), target)?;
    Ok(Here {
        library,
        version,
        instance,
        target,
        lnc,
        cores,
        visible,
    })
}

/// Whether the driver shows a device that this process may open.
fn present(nodes: &Path) -> Result<(), String> {
    let first = nodes.join("neuron0");
    let at = first.display();
    // Asked and not opened: the driver notices who opens a device and who closes it.
    match access(&first, AccessFlags::R_OK | AccessFlags::W_OK) {
        Ok(()) => Ok(()),
        Err(Errno::ENOENT) => Err(format!(
            "there is no {at}: this instance has no Neuron device, or the driver is not loaded \
             (modprobe neuron)"
        )),
        Err(Errno::EACCES | Errno::EPERM) => Err(format!(
            "{at} may not be opened: run as a member of its group (ls -l {at}), and in a container \
             pass it with --device={at}"
        )),
        Err(error) => Err(format!("{at} cannot be opened: {error}")),
    }
}

/// Physical cores of a logical one, as the environment says or as the target has it.
fn logical(value: Option<String>, target: Target) -> Result<u32, String> {
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return Ok(target.default_logical());
    };
    let allowed = target.facts().logical;
    let known = value.parse().ok().filter(|lnc| allowed.contains(lnc));
    known.ok_or_else(|| {
        format!(
            "{LOGICAL} is {value:?}, and {target} has logical cores of {allowed:?} physical ones"
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_host_without_the_driver_is_told_so() {
        let nodes = tempfile::tempdir().unwrap();
        let why = present(nodes.path()).unwrap_err();
        assert!(why.contains("neuron0") && why.contains("modprobe"), "{why}");
        fs::write(nodes.path().join("neuron0"), "").unwrap();
        assert_eq!(present(nodes.path()), Ok(()));
    }

    #[test]
    fn logical_cores_are_those_that_the_target_can_have() {
        let said = |value: &str, target| logical(Some(value.to_owned()), target);
        assert_eq!(logical(None, Target::Trn2), Ok(2));
        assert_eq!(said("", Target::Trn1), Ok(1));
        assert_eq!(said("1", Target::Trn2), Ok(1));
        let why = said("2", Target::Inf2).unwrap_err();
        assert!(why.contains("\"2\"") && why.contains("inf2"), "{why}");
    }
}
