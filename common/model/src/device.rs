//! Choosing where to compute.

use lcf_store::{
    Error, Result,
    provenance::{Provenance, TO_THE_BIT, UP_TO_ROUNDING},
    say,
};
use tch::{Cuda, Device};

/// The flags of every stage that computes.
#[derive(clap::Args, Clone, Debug)]
pub struct DeviceArgs {
    /// Where to compute: cpu, cuda, cuda:N, or auto for the first CUDA device there is, else the CPU
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Threads of the CPU's computations, whatever OMP_NUM_THREADS says: another number rounds matrix products otherwise
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: u16,
}

impl DeviceArgs {
    /// The device asked for, ready to use. TF32 is off: fp32 means fp32. MKL splits a matrix product, and with it the sums
    /// in it, by its number of threads, so that number is fixed: a config has one result on any number of cores.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name that is none of the four forms or a CUDA device that is not there.
    pub fn open(&self) -> Result<Device> {
        self.open_for(0)
    }

    /// [`DeviceArgs::open`] for process number `local` of several on this machine: cuda and auto are `cuda:local`, or the
    /// only device that it sees.
    ///
    /// # Errors
    /// As there.
    pub fn open_for(&self, local: usize) -> Result<Device> {
        let opened = lcf_native::open_cuda();
        lcf_native::set_tf32(false);
        tch::set_num_threads(self.threads.into());
        let count = if opened.is_ok() && Cuda::is_available() { Cuda::device_count() } else { 0 };
        let index = match self.device.as_str() {
            "auto" if count == 0 => {
                if let (Err(reason), Some(card)) = (&opened, card()) {
                    say!("note: computing on the CPU although there is a {card}: {reason} (`make deps CUDA=1`)");
                }
                return Ok(Device::Cpu);
            }
            "cpu" => return Ok(Device::Cpu),
            "auto" | "cuda" if count == 1 => 0,
            "auto" | "cuda" => local,
            other => other
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .ok_or_else(|| Error::usage(format!("--device {other}: expected cpu, cuda, cuda:N or auto")))?,
        };
        if index as i64 >= count {
            let reason = match opened {
                Ok(()) if index == local && local > 0 => format!("{count} CUDA devices found, expected {}", local + 1),
                Ok(()) => format!("{count} CUDA devices found"),
                Err(reason) => format!("no CUDA: {reason}"),
            };
            return Err(Error::usage(format!("--device {}: {reason}", self.device))
                .with_hint("--device cpu, or install the driver and `make deps CUDA=1`"));
        }
        Ok(Device::Cuda(index))
    }
}

/// Records the device, libtorch's version, and whether the result can be had again: on the CPU it can, on CUDA where all of
/// it is computed `in_order` by kernels that add in a fixed one.
pub fn record(provenance: &mut Provenance, device: Device, in_order: bool) {
    provenance.device = name(device);
    provenance.libtorch = tch_version().to_owned();
    let fixed = device == Device::Cpu || in_order;
    provenance.reproducible = if fixed { TO_THE_BIT } else { UP_TO_ROUNDING }.to_owned();
}

/// `cpu`, or `cuda:N` and the card's name.
pub fn name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index} {}", card().unwrap_or_default()).trim_end().to_owned(),
        _ => "cpu".to_owned(),
    }
}

/// The name of the first card, as the NVIDIA driver lists it.
fn card() -> Option<String> {
    let gpu = std::fs::read_dir("/proc/driver/nvidia/gpus").ok()?.next()?.ok()?;
    let text = std::fs::read_to_string(gpu.path().join("information")).ok()?;
    let model = text.lines().find_map(|line| line.strip_prefix("Model:"))?;
    Some(model.trim().to_owned())
}

/// The libtorch this workspace is built against.
const fn tch_version() -> &'static str {
    "2.11.0"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(device: &str) -> Result<Device> {
        DeviceArgs { device: device.to_owned(), threads: 2 }.open()
    }

    #[test]
    fn what_adds_in_a_fixed_order_can_be_had_again() {
        let recorded = |device, in_order| {
            let mut provenance = Provenance::start();
            record(&mut provenance, device, in_order);
            provenance.reproducible
        };
        assert_eq!(recorded(Device::Cpu, false), "to the bit");
        assert_eq!(recorded(Device::Cuda(0), true), "to the bit");
        assert_eq!(recorded(Device::Cuda(0), false), "up to rounding");
    }

    #[test]
    fn names_are_checked() {
        assert_eq!(open("cpu").unwrap(), Device::Cpu);
        assert!(open("auto").is_ok());
        for bad in ["gpu", "cuda:", "cuda:x", "cuda:99"] {
            let error = open(bad).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().starts_with(&format!("--device {bad}: ")), "{error}");
        }
    }
}
