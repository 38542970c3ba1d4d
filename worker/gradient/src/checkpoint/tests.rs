use super::*;
use crate::optim::Rule;
use crate::trainer::tests::{FINE, adam_w, params, plan, rules, run};
use proptest::prelude::*;

const SPEC: [u8; HASH] = [7; HASH];

fn trained(rule: Rule, steps: usize) -> Trainer {
    let mut trainer = Trainer::new(plan(rule), params()).unwrap();
    for _ in 0..steps {
        trainer.step(&FINE).unwrap().unwrap();
    }
    trainer
}

fn read(bytes: &[u8]) -> Result<(Trainer, Vec<u8>), CheckpointError> {
    resume(plan(adam_w()), params(), &SPEC, bytes)
}

/// The bytes with a checksum that fits, whatever was done to them.
fn signed(mut body: Vec<u8>) -> Vec<u8> {
    let hash = Sha256::digest(&body);
    body.extend(hash);
    body
}

fn body() -> Vec<u8> {
    let mut bytes = to_bytes(&trained(adam_w(), 5), &SPEC, b"notes").unwrap();
    bytes.truncate(bytes.len() - HASH);
    bytes
}

proptest! {
    /// A run that is killed at any step, with checkpoints every few steps, and resumed, gives the bytes of a run that was
    /// not.
    #[test]
    fn a_killed_run_gives_the_same_bytes(rule in rules(), killed in 0_u64..=12, every in 1_u64..6) {
        let mut whole = trained(rule, 0);
        let reports = run(&mut whole);
        let mut trainer = trained(rule, 0);
        let mut saved = to_bytes(&trainer, &SPEC, &[]).unwrap();
        while trainer.next_step() < killed {
            trainer.step(&FINE).unwrap().unwrap();
            if trainer.next_step().is_multiple_of(every) {
                saved = to_bytes(&trainer, &SPEC, &trainer.next_step().to_le_bytes()).unwrap();
            }
        }
        let (mut resumed, notes) = resume(plan(rule), params(), &SPEC, &saved).unwrap();
        let at = resumed.next_step();
        prop_assert_eq!(at, killed / every * every);
        prop_assert_eq!(notes, if at == 0 { vec![] } else { at.to_le_bytes().to_vec() });
        let rest = run(&mut resumed);
        prop_assert_eq!(&rest[..], &reports[at as usize..]);
        prop_assert_eq!(to_bytes(&resumed, &SPEC, &[]).unwrap(), to_bytes(&whole, &SPEC, &[]).unwrap());
    }

    /// Any change of a byte and any cut is refused by the checksum.
    #[test]
    fn torn_bytes_are_refused(at: prop::sample::Index, flip in 1_u8..=255, cut: prop::sample::Index) {
        let bytes = to_bytes(&trained(adam_w(), 3), &SPEC, b"notes").unwrap();
        let mut changed = bytes.clone();
        changed[at.index(bytes.len())] ^= flip;
        prop_assert!(matches!(read(&changed), Err(CheckpointError::Torn | CheckpointError::Foreign)));
        prop_assert!(matches!(read(&bytes[..cut.index(bytes.len())]), Err(CheckpointError::Torn | CheckpointError::Foreign)));
    }

    /// Bytes that were changed by one who knows the format are read without harm: refused, or other numbers.
    #[test]
    fn hostile_bytes_do_no_harm(
        at: prop::sample::Index, new in prop::collection::vec(any::<u8>(), 0..40), cut: prop::sample::Index,
    ) {
        let mut bytes = body();
        let at = MAGIC.len() + at.index(bytes.len() - MAGIC.len());
        let end = (at + new.len()).min(bytes.len());
        bytes.splice(at..end, new);
        if let Ok((trainer, _)) = read(&signed(bytes.clone())) {
            prop_assert_eq!(trainer.params().len(), 4);
        }
        bytes.truncate(MAGIC.len() + cut.index(bytes.len() - MAGIC.len()));
        prop_assert!(read(&signed(bytes)).is_err());
    }
}

#[test]
fn of_another_job() {
    let bytes = to_bytes(&trained(adam_w(), 5), &SPEC, &[]).unwrap();
    assert_eq!(read(&bytes).unwrap().0, trained(adam_w(), 5));
    let other = |plan: Plan, params: Vec<Param>, spec: &[u8; HASH]| resume(plan, params, spec, &bytes).unwrap_err();
    assert_eq!(other(plan(adam_w()), params(), &[8; HASH]), CheckpointError::OtherSpec);
    let sgd = Rule::Sgd {
        momentum: 0.9,
        nesterov: false,
        weight_decay: 0.0,
    };
    assert_eq!(other(plan(sgd), params(), &SPEC), CheckpointError::OtherOptimizer);
    let short = Plan {
        epochs: 1,
        ..plan(adam_w())
    };
    assert_eq!(
        other(short, params(), &SPEC),
        CheckpointError::Beyond { step: 5, steps: 3 }
    );
    let mut renamed = params();
    renamed[2] = Param::new("w3", &[1, 4], &[0.0; 4]).unwrap();
    assert_eq!(
        other(plan(adam_w()), renamed, &SPEC),
        CheckpointError::OtherTensors("w3".to_owned())
    );
    let mut turned = params();
    turned[2] = Param::new("w2", &[4, 1], &[0.0; 4]).unwrap();
    assert_eq!(
        other(plan(adam_w()), turned, &SPEC),
        CheckpointError::OtherTensors("w2".to_owned())
    );
    let fewer = params()[..3].to_vec();
    assert!(matches!(
        other(plan(adam_w()), fewer, &SPEC),
        CheckpointError::OtherTensors(_)
    ));
}

#[test]
fn what_is_no_state() {
    assert_eq!(read(b"").unwrap_err(), CheckpointError::Foreign);
    assert_eq!(read(b"FTUNECK2rest").unwrap_err(), CheckpointError::Foreign);
    assert_eq!(read(MAGIC).unwrap_err(), CheckpointError::Torn);
    let mut more = body();
    more.push(0);
    assert_eq!(read(&signed(more)).unwrap_err(), CheckpointError::Length);
    // The values begin after the head and the table, and are followed by two moments and the notes.
    let mut bytes = body();
    let values: usize = params().iter().map(|p| p.values().len()).sum();
    let first = bytes.len() - 5 - 8 - 3 * 4 * values;
    bytes[first..first + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_eq!(
        read(&signed(bytes.clone())).unwrap_err(),
        CheckpointError::NotFinite("w1".to_owned())
    );
    bytes[first..first + 4].copy_from_slice(&1e20_f32.to_le_bytes());
    assert!(matches!(
        read(&signed(bytes)).unwrap_err(),
        CheckpointError::Plan(PlanError::NotFinite { .. })
    ));
    let notes = vec![0; MAX_NOTES + 1];
    assert!(to_bytes(&trained(adam_w(), 0), &SPEC, &notes).is_err());
}
