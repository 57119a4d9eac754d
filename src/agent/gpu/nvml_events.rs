//! Xid errors as the driver tells them: a thread of the child process that waits in NVML's event
//! set, for as long as the process lives.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use nvml_wrapper::{Device, Nvml};

use super::xids::{Seen, XidTable};
use crate::agent::process;

/// One wait in the driver; it comes back at once when something happens.
const WAIT_MS: u32 = 60_000;

/// After an event set that cannot be made or broke.
const PAUSE: Duration = Duration::from_secs(10);

/// The Xid errors of each GPU, shared with the thread that waits for them.
#[derive(Clone, Debug, Default)]
pub struct Xids(Arc<Mutex<XidTable>>);

impl Xids {
    fn table(&self) -> MutexGuard<'_, XidTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of a GPU.
    pub fn of(&self, uuid: &str) -> Seen {
        self.table().of(uuid)
    }

    /// Takes over what is known already.
    pub fn learn(&self, known: &XidTable) {
        self.table().learn(known);
    }
}

/// Waits for events from now on and tells `changed` of each, with all that are known. The thread ends with the process.
pub fn watch(nvml: Arc<Nvml>, xids: Xids, changed: impl Fn(XidTable) + Send + 'static) {
    let work = move || {
        loop {
            // No GPU of this host tells events now; one that is being reset may do so later.
            let Ok(Some((set, handles))) = register(&nvml) else {
                std::thread::sleep(PAUSE);
                continue;
            };
            wait(&set, &handles, &xids, &changed);
            drop(set);
            std::thread::sleep(PAUSE);
        }
    };
    // Without the thread (no memory for its stack) Xid errors are missed; samples are not.
    let _ = std::thread::Builder::new().name("nvml events".to_owned()).spawn(work);
}

/// UUIDs of GPUs by the handles that events carry. A GPU that is lost does not say any more who it is,
/// and an Xid error is just how it is lost.
type Handles = BTreeMap<usize, String>;

#[allow(unsafe_code)]
fn handle(device: &Device<'_>) -> usize {
    // SAFETY: the pointer is only compared, never followed.
    unsafe { device.handle() }.addr()
}

/// Takes events until the set breaks.
fn wait(set: &EventSet<'_>, handles: &Handles, xids: &Xids, changed: &impl Fn(XidTable)) {
    loop {
        match set.wait(WAIT_MS) {
            Ok(event) => {
                if let Some(XidError::Value(code)) = event.event_data
                    && let Some(uuid) = handles
                        .get(&handle(&event.device))
                        .cloned()
                        .or_else(|| event.device.uuid().ok())
                {
                    xids.table().happened(&uuid, code, process::since_boot_ms());
                }
                changed(xids.table().clone());
            }
            Err(NvmlError::Timeout) => {}
            Err(error) => {
                if matches!(error, NvmlError::GpuLost) {
                    changed(xids.table().clone());
                }
                return;
            }
        }
    }
}

/// An event set with every GPU that tells events. A registration that fails takes the whole set
/// with it (so the wrapper does), and the next try leaves that GPU out.
fn register(nvml: &Nvml) -> Result<Option<(EventSet<'_>, Handles)>, NvmlError> {
    let wanted = EventTypes::CRITICAL_XID_ERROR | EventTypes::DOUBLE_BIT_ECC_ERROR;
    let count = nvml.device_count()?;
    let mut able: Vec<u32> = (0..count)
        .filter(|index| {
            let device = nvml.device_by_index(*index);
            device.and_then(|d| d.supported_event_types()).is_ok_and(|t| t.intersects(wanted))
        })
        .collect();
    'again: while !able.is_empty() {
        let mut set = nvml.create_event_set()?;
        let mut handles = Handles::new();
        for (at, index) in able.iter().enumerate() {
            let Ok(device) = nvml.device_by_index(*index) else {
                able.remove(at);
                continue 'again;
            };
            if let Ok(uuid) = device.uuid() {
                handles.insert(handle(&device), uuid);
            }
            let types = device.supported_event_types().unwrap_or(wanted) & wanted;
            match device.register_events(types, set) {
                Ok(same) => set = same,
                Err(_) => {
                    able.remove(at);
                    continue 'again;
                }
            }
        }
        return Ok(Some((set, handles)));
    }
    Ok(None)
}
