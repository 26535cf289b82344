"use strict";
// Every object has one number, the view that its panes show. Slider, arrow keys and dragging set it; CSS moves the pictures.
for (const object of document.querySelectorAll(".object.turn")) {
  const slider = object.querySelector("input[type=range]");
  const where = object.querySelector(".where");
  const places = JSON.parse(object.dataset.places);
  const marks = object.querySelectorAll(".dial [data-view]");
  let view = 0;

  const show = (next) => {
    view = ((next % places.length) + places.length) % places.length;
    object.style.setProperty("--view", view);
    slider.value = view;
    slider.setAttribute("aria-valuetext", places[view]);
    where.textContent = places[view];
    for (const mark of marks) mark.classList.toggle("on", Number(mark.dataset.view) === view);
  };

  slider.addEventListener("input", () => show(Number(slider.value)));
  slider.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 };
    if (event.key in steps) {
      event.preventDefault(); // the native slider stops at its ends, an orbit goes on
      show(view + steps[event.key]);
    }
  });

  for (const pane of object.querySelectorAll(".window.drag")) {
    let from = null;
    pane.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      from = { x: event.clientX, view };
      pane.setPointerCapture(event.pointerId);
      object.classList.add("dragging");
      if (event.pointerType === "mouse") event.preventDefault(); // no text selection
    });
    pane.addEventListener("pointermove", (event) => {
      if (from === null) return;
      const turns = (event.clientX - from.x) / pane.clientWidth; // a pane's width is once around
      show(from.view - Math.round(turns * places.length)); // pulled to the right, the object turns to the right
    });
    const release = () => {
      from = null;
      object.classList.remove("dragging");
    };
    pane.addEventListener("pointerup", release);
    pane.addEventListener("pointercancel", release);
  }
  show(0);
}
