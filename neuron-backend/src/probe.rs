//! Which device is here.

use std::path::Path;

use engine::Device;
use neuron_sys::PATH_VARIABLE;

use crate::nrt::Libnrt;

/// The first chip, if the driver has found one.
const CHIP: &str = "/dev/neuron0";

/// The device of this host, without taking any of its cores.
///
/// # Errors
/// Why there is none that can be used, in words for whoever set it up.
pub fn probe() -> Result<Device, String> {
    // Whoever names a library has a device for it.
    if !Path::new(CHIP).exists() && std::env::var_os(PATH_VARIABLE).is_none() {
        return Err(format!(
            "there is no {CHIP}: no Neuron device, or no driver"
        ));
    }
    let libnrt = Libnrt::open(None).map_err(|error| error.to_string())?;
    let instance = libnrt.instance().map_err(|error| error.to_string())?;
    let cores = libnrt.total_cores().map_err(|error| error.to_string())?;
    let Some(target) = instance.target() else {
        let architecture = instance.architecture;
        return Err(format!(
            "the runtime says {architecture}, which is unknown here"
        ));
    };
    let logical = target.default_logical();
    Ok(Device {
        name: format!("{target} ({cores} logical cores)"),
        memory: target.facts().memory(logical) * u64::from(cores),
        cores,
    })
}
