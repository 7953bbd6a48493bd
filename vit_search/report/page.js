(() => {
  const told = JSON.parse(document.getElementById('told').textContent);
  const places = [...document.querySelectorAll('.picture')];
  const drawn = new Set();
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();
  const dyed = value => Array.isArray(value) ? value.map(dyed)
    : value && typeof value === 'object' ? Object.fromEntries(Object.entries(value).map(([key, one]) => [key, dyed(one)]))
    : typeof value === 'string' && /^[$][a-z]+$/.test(value) ? colour(value.slice(1)) : value;
  const axis = () => ({gridcolor: colour('rule'), linecolor: colour('rule'), zeroline: false, automargin: true, title: {standoff: 8}});
  const draw = place => {
    const {data, layout} = told[+place.dataset.picture];
    const narrow = place.clientWidth < 480;
    const base = {font: {color: colour('text'), size: narrow ? 11 : 12, family: getComputedStyle(document.body).fontFamily},
      paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', xaxis: axis(), yaxis: axis(),
      legend: {orientation: 'h', yanchor: 'bottom', y: 1.02, x: 0, xanchor: 'left'},
      hoverlabel: {bgcolor: colour('panel'), bordercolor: colour('rule'), font: {color: colour('text')}}};
    const whole = {...dyed(layout), template: {layout: base}, autosize: true, height: place.clientHeight};
    whole.margin = {l: 50, r: 16, t: 36, b: 44, ...(layout.margin || {})};
    Plotly.react(place, dyed(data), whole, {responsive: true, displaylogo: false, displayModeBar: narrow ? false : 'hover',
      modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d'], plotlyServerURL: ''});
    drawn.add(place);
  };
  const seen = new IntersectionObserver(entries => entries.forEach(entry => {
    if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
  }), {rootMargin: '600px'});
  places.forEach(place => seen.observe(place));
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => drawn.forEach(draw));
  addEventListener('beforeprint', () => { document.documentElement.classList.add('light'); places.forEach(draw); });
  addEventListener('afterprint', () => { document.documentElement.classList.remove('light'); drawn.forEach(draw); });
})();
