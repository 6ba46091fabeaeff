'use strict';
// One comparison per image: two layers of it, with a line that moves between them.
document.querySelectorAll('.views').forEach((views) => {
  const compare = views.querySelector('.compare');
  const thumbs = Array.from(views.querySelectorAll('.layers img'));
  if (thumbs.length < 2) return;
  const stage = compare.querySelector('.stage');
  const range = compare.querySelector('input');
  const sides = ['left', 'right'].map((name) => ({
    select: compare.querySelector(`select.${name}`),
    slot: compare.querySelector(`.slot.${name}`),
    tag: compare.querySelector(`.tag.${name}`),
    img: compare.querySelector(name === 'left' ? '.under' : '.over'),
  }));

  const show = (side, index) => {
    const thumb = thumbs[index];
    side.select.selectedIndex = index;
    side.img.src = thumb.src;
    side.img.alt = thumb.alt;
    side.tag.textContent = thumb.dataset.name;
    const key = thumb.closest('figure').querySelector('.key');
    side.slot.replaceChildren(...(key ? [key.cloneNode(true)] : []));
    thumbs.forEach((other, place) => {
      other.setAttribute('aria-pressed', String(place === sides[1].select.selectedIndex));
    });
  };
  const cut = (percent) => {
    range.value = percent;
    stage.style.setProperty('--cut', `${range.value}%`);
  };

  sides.forEach((side) => {
    thumbs.forEach((thumb) => side.select.add(new Option(thumb.dataset.name)));
    side.select.addEventListener('change', () => show(side, side.select.selectedIndex));
  });
  thumbs.forEach((thumb, index) => {
    thumb.setAttribute('role', 'button');
    thumb.tabIndex = 0;
    thumb.title = 'show on the right';
    thumb.addEventListener('click', () => show(sides[1], index));
    thumb.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' || event.key === ' ') {
        event.preventDefault();
        show(sides[1], index);
      }
    });
  });
  range.addEventListener('input', () => cut(range.value));
  const drag = (event) => {
    const box = stage.getBoundingClientRect();
    cut(100 * (event.clientX - box.left) / box.width);
  };
  stage.addEventListener('pointerdown', (event) => {
    stage.setPointerCapture(event.pointerId);
    drag(event);
  });
  stage.addEventListener('pointermove', (event) => {
    if (stage.hasPointerCapture(event.pointerId)) drag(event);
  });

  compare.hidden = false;
  show(sides[0], 0);
  show(sides[1], 1);
  cut(50);
  // Small images are enlarged: their pixels stay what they are.
  const width = Number(compare.style.getPropertyValue('--w'));
  if (width < 400) sides.forEach((side) => side.img.classList.add('crisp'));
});
