//! Writes the CustomResourceDefinitions beside their types (`crds/*.yaml`), as templates into the charts, and as the
//! table of fields into `docs/fields.md`.

use fleetune_crds::{reference, yaml};
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("FLEETUNE_ROOT"));
    for (chart, kinds) in [("fleetune", yaml::hub()), ("fleetune-edge", yaml::edge())] {
        let templates = root.join("charts").join(chart).join("templates/crds");
        std::fs::create_dir_all(&templates)?;
        for (name, definition) in kinds {
            std::fs::write(root.join("crds").join(format!("{name}.yaml")), yaml::text(&definition)?)?;
            std::fs::write(templates.join(format!("{name}.yaml")), yaml::template(&definition)?)?;
        }
    }
    let all: Vec<_> = yaml::hub().into_iter().chain(yaml::edge()).collect();
    std::fs::create_dir_all(root.join("docs"))?;
    std::fs::write(
        root.join("docs/fields.md"),
        reference::page(all.iter().map(|(_, crd)| crd)),
    )?;
    Ok(())
}
