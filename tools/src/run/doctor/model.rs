//! A model: whether its file is whole, whether it fits, and what speed is to be expected.

use serde_json::json;
use yuan::{
    container::Container,
    error::Error,
    machine::facts::Limits,
    model::{Placement, Sizes},
    pager::Mode,
};
use yuan_tools::console::{busy, byte_bar, explain, size, stopped};

use super::{ADDRESSES, Doctor, Machine, drive, finding::Finding, machine};
use crate::{fits::Speeds, forecast::Forecast};

/// Bytes of tensors that are compared with their digests where not all are.
const SAMPLE: u64 = 256 << 20;
/// Tokens that sessions of the forecast have room for.
const CONTEXT: usize = 2048;

/// The checks of the model that the command names.
pub(super) fn check(doctor: &Doctor, here: &Machine) -> Vec<Finding> {
    let opened = doctor.run.model.path().and_then(|path| Ok(Container::open(&path)?));
    let container = match opened {
        Ok(container) => container,
        Err(error) => {
            let remedy = "see the message; `yuan list` shows the models that there are";
            return vec![Finding::wrong("model", explain(&error), remedy)];
        }
    };
    let config = container.config();
    let path = container.path().display().to_string();
    let says = format!(
        "{path} opens: {}, {}, {}",
        config.family.name(),
        container.layout_name(),
        size(container.data_bytes())
    );
    let facts = json!({ "file": path, "bytes": container.data_bytes(), "layout": container.layout_name() });
    let mut findings = vec![Finding::ok("model", says).with(facts)];
    let limits = Limits::now();
    findings.extend(machine::addresses(&limits, ADDRESSES / 2));
    findings.push(whole(&container, doctor.verify));
    if stopped() {
        return findings;
    }
    let drive =
        (!doctor.quick && here.roomy).then(|| drive::speed(container.path(), "read of the model's file"));
    let gb_per_second = drive.as_ref().and_then(|finding| finding.facts["gb_per_second"].as_f64());
    findings.extend(drive);
    findings.push(fits(doctor, here, &container, gb_per_second));
    findings
}

/// Its digests.
fn whole(container: &Container, all: bool) -> Finding {
    let verified = if all {
        let bar = byte_bar(container.data_bytes(), "verify");
        let progress = |bytes| {
            bar.inc(bytes);
            !stopped()
        };
        let verified = container.verify(&progress);
        bar.finish_and_clear();
        verified.map(|()| (container.tensors().len(), container.data_bytes()))
    } else {
        let _busy = busy("comparing some tensors with their digests");
        container.verify_sample(SAMPLE, &|_| !stopped())
    };
    let count = container.tensors().len();
    match verified {
        Ok((checked, bytes)) => {
            let more = if checked < count { "; --verify, or `yuan-quant verify`, compares all" } else { "" };
            let says = format!(
                "{checked} of {count} tensors, {}, have the digests that were recorded{more}",
                size(bytes)
            );
            Finding::ok("digests", says).with(json!({ "checked": checked, "tensors": count, "bytes": bytes }))
        }
        Err(Error::Cancelled) => Finding::ok("digests", "not compared: stopped"),
        Err(error @ Error::Unsupported { .. }) => Finding::note(
            "digests",
            format!("not compared: {error}"),
            "`yuan-quant FILE -o TILES.gguf` makes a container that has them, and is faster",
        ),
        Err(error) => Finding::wrong(
            "digests",
            error.to_string(),
            "fetch or convert the model again; if it happens again, the drive or the memory is at fault",
        ),
    }
}

/// Whether it fits here, and how fast it can be.
fn fits(doctor: &Doctor, here: &Machine, container: &Container, drive: Option<f64>) -> Finding {
    let placement = match Placement::new(container, &doctor.run.options(CONTEXT)) {
        Ok(placement) => placement,
        Err(error) => {
            let remedy = "close other programs, give it more (--memory), or take a smaller container (`yuan-quant --size`)";
            return Finding::wrong("fits", error.to_string(), remedy);
        }
    };
    let p = &placement;
    let how = match p.mode {
        Mode::Streamed => {
            format!("streamed from the drive, with {} of {} experts in memory", p.resident, p.experts)
        }
        Mode::Mapped | Mode::Plain => "all of it fits into memory".into(),
    };
    let mut facts = json!({
        "mode": p.mode.name(), "why": p.why, "budget": p.budget.bytes, "smallest": p.smallest, "experts": p.experts, "experts_resident": p.resident,
    });
    let Some(memory) = here.memory else {
        let says =
            format!("{how}; its speed was not estimated: `yuan plan {}` does", container.path().display());
        return Finding::ok("fits", says).with(facts);
    };
    let speeds = Speeds { memory, drive: drive.filter(|_| p.expert_bytes > 0) };
    let forecast = Forecast::evenly(container.config(), &Sizes::of(container), p, speeds);
    facts["tokens_per_second"] = json!(forecast.speed);
    facts["bytes_per_token"] = json!(forecast.weights);
    let says = format!(
        "{how}; expect at most {:.1} tok/s (a token reads {} of weights, {} of them from the drive)",
        forecast.speed,
        size(forecast.weights),
        size(forecast.read as u64)
    );
    let finding = if p.mode == Mode::Streamed && forecast.wait > forecast.compute {
        let remedy = "the drive holds it up: more memory (close other programs, --memory), a shorter --context, --kv q8_0, or a smaller container make it faster; `yuan plan` says by how much";
        Finding::note("fits", says, remedy)
    } else {
        Finding::ok("fits", says)
    };
    finding.with(facts)
}
